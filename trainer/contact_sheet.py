"""Contact sheets: the doubtful images themselves, as the network saw them."""

import base64
import io
from collections.abc import Sequence
from html import escape

import msgspec
from PIL import Image

from packshot.image import Pixels
from trainer.answered import Answers, Part
from trainer.doubtful import Doubtful, Doubts
from trainer.metrics import Metrics

SHOWN = 24  # of each sheet: the page stays under a megabyte
SIDE, QUALITY = 128, 80  # pixels and JPEG quality of a thumbnail: about 4 KB
PARTS: dict[Part, str] = {"train": "trained on", "val": "validation", "test": "test"}


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """`jpeg`: the thumbnail's content."""

    doubtful: Doubtful
    jpeg: bytes


class Sheet(msgspec.Struct, frozen=True, kw_only=True):
    title: str
    note: str
    images: int  # all that there are of the kind
    cards: tuple[Card, ...]


def sheets_of(metrics: Metrics, answers: Sequence[Answers]) -> tuple[Sheet, ...]:
    """The doubtful images of the metrics, with their pictures."""
    return (
        _sheet(
            "Most confident mistakes",
            "Wrong answers on images that were not trained on, the surest first.",
            metrics.mistakes,
            answers,
        ),
        _sheet(
            "Likely label errors",
            "The network takes these for another class as surely as that class's own images. Images"
            " trained on were learned with their labels: of them fewer errors show.",
            metrics.likely_label_errors,
            answers,
        ),
    )


def _sheet(title: str, note: str, doubts: Doubts, answers: Sequence[Answers]) -> Sheet:
    shown = doubts.listed[:SHOWN]
    wanted = {one.file for one in shown}
    views = {
        example.file: view
        for part in answers
        for example, view in zip(part.examples, part.views, strict=True)
        if example.file in wanted
    }
    cards = tuple(Card(doubtful=one, jpeg=thumbnail(views[one.file])) for one in shown)
    return Sheet(title=title, note=note, images=doubts.images, cards=cards)


def thumbnail(view: Pixels) -> bytes:
    """A JPEG file of one view, uint8 [side, side, 3]."""
    small = Image.fromarray(view).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    with io.BytesIO() as buffer:
        small.save(buffer, "JPEG", quality=QUALITY, optimize=True)
        return buffer.getvalue()


def sheet_html(sheet: Sheet) -> str:
    if not sheet.cards:
        return f"<h2>{sheet.title}: none</h2>"
    shown = f", {len(sheet.cards)} shown" if len(sheet.cards) < sheet.images else ""
    cards = "".join(_card(card) for card in sheet.cards)
    return (
        f'<h2>{sheet.title}: {sheet.images}{shown}</h2><p class="lead">{sheet.note}</p>'
        f'<div class="sheet">{cards}</div>'
    )


def _card(card: Card) -> str:
    one = card.doubtful
    picture = base64.b64encode(card.jpeg).decode()
    name = escape(one.file)
    return (
        f'<figure><img src="data:image/jpeg;base64,{picture}" width="{SIDE}" height="{SIDE}" '
        f'alt="{name}"><figcaption><b>{escape(one.answer)}</b> {one.answer_probability:.1%}<br>'
        f"labelled {escape(one.label)} {one.label_probability:.1%}<br>"
        f'<small title="{name}">{name}</small><br><small>{PARTS[one.part]}</small>'
        f"</figcaption></figure>"
    )
