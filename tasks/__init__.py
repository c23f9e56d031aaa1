"""The steps of the road, one module each. A step states an end state; `deploy.py` says the order."""
