"""What rigup knows about distributions: packages, driver branches, apt repositories. Pure tables and functions.

`table` lists the supported distributions, `driver` the packages of driver, Docker and container toolkit by driver
branch, and `apt_sources` the repositories at the configured mirrors. May import `config` and leaf modules.
"""
