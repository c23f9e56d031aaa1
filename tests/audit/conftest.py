"""The plugin that runs these checks; see `rigup.audit.plugin`."""

pytest_plugins = ["rigup.audit.plugin"]
