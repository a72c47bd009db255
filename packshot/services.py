"""Names of the gRPC services, as on the wire; whoever only names one needs no protobuf."""

CLASSIFIER = "packshot.v1.Classifier"
OPEN_INFERENCE = "inference.GRPCInferenceService"
