"""The gRPC contract: `retrieval.proto`, and what protoc made of it."""
