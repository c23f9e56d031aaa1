"""Measurements of an endpoint: what is asked, the statistics, the evidence, and the comparison of two results. Pure."""
