__version__ = "0.1.0"
# Raised whenever the schema or the meaning of a compiled op changes. setup.py compiles it into the module
# _lae_fast_build, and ops/library.py refuses the libraries of a build with another number.
SCHEMA_VERSION = 10
