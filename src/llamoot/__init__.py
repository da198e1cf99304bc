"""llamoot: several language models answer as one."""

__version__ = "0.1.0"
