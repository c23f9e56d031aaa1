"""A stand-in for SGLang: checks its arguments against the real list of options and answers as the real server does.

These modules run inside the lab's image as the package `sglang`, with only the standard library; they import nothing
else of the lab. Messages and formats are those of SGLang 0.5.23. There is no model: answers are derived from the
question, and are nonsense unless the question dictates them.
"""
