"""How far a prediction is from the truth, each measure under a name that says which one it is.

Every function is pure and on any device; 3D errors of single poses are batched over leading dimensions and take an optional `conf`
(0 = not counted). 3D functions take and give metres (thresholds too) and a table prints millimetres; 2D functions take pixels and
give fractions.
"""
