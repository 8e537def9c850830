"""mdl: one small multi-path network for many visual domains.

The way through the house: `mdl.pack` writes shards, `mdl.fit` searches and retrains,
`mdl.evaluate` scores, `mdl.report` explains. ARCHITECTURE.md draws the floors.
"""
