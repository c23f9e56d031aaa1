"""What users write: the inventory file, the settings of a host, and reading YAML with errors that name file and line.

- `inventory`: hosts, how to reach them, and their settings, from `lab.yaml`.
- `settings`, `endpoint`, `waiver`, `need`, `types`: the schema of the settings, from the whole down to single values.
- `yaml_file`: YAML files for every other package too. `yaml_syntax`, `indentation` and `mistakes` say what is wrong in
  them: in their syntax, in what is indented, in values.
- `settings_help`, `schema`: the settings for people and for editors.

May import leaf modules only.
"""
