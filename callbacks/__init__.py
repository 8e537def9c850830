"""What a run can do besides its work: observe it, or set its domains' weights.

Reached by dotted name from a recipe. `mdl` never imports this package: with every callback
taken away a run is still correct and writes its products.
"""
