"""How far a prediction is from the truth, each measure under a name that says which one it is.

Every function is pure, batched over leading dimensions, on any device, and takes an optional `conf` (0 = not counted). 3D functions
take and give metres (thresholds too) and a table prints millimetres; 2D functions take pixels and give fractions.
"""
