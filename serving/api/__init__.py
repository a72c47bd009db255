"""Wire APIs: thin adapters that convert, delegate to the pipeline, and translate errors."""
