"""The static site: generator, templates, assets and pictures."""
