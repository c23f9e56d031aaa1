"""The configuration of clients for an endpoint, from its plan. Pure."""
