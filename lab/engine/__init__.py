"""The layer between the container's arguments and the real vLLM in the lab's image.

These modules run inside the image as the package `lab_engine`; they import nothing else of the lab.
"""
