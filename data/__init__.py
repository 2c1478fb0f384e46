"""Builders: one file for each public data set, from its published folders to records.

`common` has what every builder is made of, `registry` finds them, `readers` holds what several read files with, and
`running` turns a builder into shards. Building needs the extra `builders`; nothing else of the project does.
"""
