"""What users write: the inventory file, the settings of a host, and reading YAML with errors that name file and line.

- `inventory`: hosts, how to reach them, and their settings, from `lab.yaml`.
- `settings`, `endpoint`, `need`, `types`: the schema of the settings, from the whole down to single values.
- `yaml_file`: YAML files for every other package too, and pydantic's errors in plain words.

May import leaf modules only.
"""
