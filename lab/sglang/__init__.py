"""A stand-in for SGLang: judges its command line with the real list of options, answers as the real server does.

These modules run inside the lab's image under the name `sglang`, with the standard library alone; they import nothing
else of the lab. What they say was read from SGLang 0.5.23. There is no model: answers follow from
the question, and what is not asked for word by word is nonsense, as of the lab's other checkpoint.
"""
