"""The catalog: how models are served. Recipes, checkpoints and engine options as validated data.

`loader` reads `recipes/`; `recipe`, `recipe_parts`, `checkpoint`, `patch` and `fields` are the schema, and `extends`
merges variants. `engine_args` turns a recipe into arguments, `engine_options` and `lint` check them, `memory` estimates
whether they fit. `rank` and `select` choose a recipe, `apply_patches` and `chat_template` change published files. May
import `distros`, `fit`, `config` and leaf modules; nothing here uses the network or a host.
"""
