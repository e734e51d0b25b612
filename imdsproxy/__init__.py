"""A transparent local caching proxy for the Azure Instance Metadata Service."""

__version__ = "0.1.0"
