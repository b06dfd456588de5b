"""A region's retrieval service: what shoppers ask, over gRPC and HTTP, and what they did then."""
