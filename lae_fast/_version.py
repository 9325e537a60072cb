__version__ = "0.1.0"
# Raised whenever the schema or the meaning of a compiled op changes. setup.py bakes it into the
# compiled libraries, and _ext.py refuses a library that carries another number.
SCHEMA_VERSION = 3
