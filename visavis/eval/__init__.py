"""The judge: measures as pure functions on arrays, a runner that fills tables, reports, raters.

Importing this package does nothing; each measure family is one module, named by its noun.
"""
