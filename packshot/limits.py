"""What a server takes: a larger image gets its error here, instead of failing its whole request."""

import sys

import msgspec

from packshot.answers import ModelInfo
from packshot.outgoing import IMAGE_FIELDS_BYTES, Outgoing, too_many_bytes

LEAST_MESSAGE_BYTES = 1 << 16
"""What any server takes: none can be set to less."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Of a request, a file and a message; endless where an older server does not tell."""

    images: int = 1
    image_bytes: int = sys.maxsize
    message_bytes: int = sys.maxsize

    @classmethod
    def told(cls, info: ModelInfo) -> "Limits":
        return cls(
            images=info.max_images_per_request or 1,
            image_bytes=info.max_image_bytes or sys.maxsize,
            message_bytes=info.max_message_bytes or sys.maxsize,
        )

    def kept(self, one: Outgoing, fields_bytes: int) -> Outgoing:
        """The image, or an error in its place if the server would not take it even alone.

        `fields_bytes`: of a request without images.
        """
        if one.message is None:
            return one
        most = self.message_bytes - fields_bytes - IMAGE_FIELDS_BYTES
        if one.message.WhichOneof("content") == "encoded":
            most = min(most, self.image_bytes)
        if one.content_bytes <= most:
            return one
        return too_many_bytes(one.name, one.content_bytes, most)
