"""Bodies to joints: residuals and priors, batched solvers, the fit of a whole person, and SMPLify and SMPLify-X as published."""
