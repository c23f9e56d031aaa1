"""Bring a release of vLLM or SGLang into the catalog: what its command line accepts and what it serves."""
