"""The surrogate: a weighted set of Gaussian processes over (hyperparameters, scale), and its posterior of the optimum.

    T[ loss(x, n) - E(n) ] = T[ bowl(x~) ] + f(x~) + g(x~, n) + noise(n)          x~ = x - Delta(n)

| symbol  | meaning                                                                    | shape      | module     |
|---------|----------------------------------------------------------------------------|------------|------------|
| x       | hyperparameters, base coordinates in the unit cube                         | (n, d)     |            |
| l       | ln(axis / target axis), one column an axis that varies; 0 at the target    | (n, a)     |            |
| X       | [x, l], the input of mean and kernel                                       | (n, d + a) |            |
| Delta   | drift of the optimum relative to the target, zero there                    | (n, d)     | scaling    |
| h       | distance from the target along the power law, 0 there, +-1 at the reach    | (n, a)     | scaling    |
| E       | the loss law: loss of the best hyperparameters at a scale                  | (n,)       | mean       |
| bowl    | a quadratic in x~, the coarse shape of the landscape                       | (n,)       | mean       |
| f, g    | what the bowl misses: shared by all scales; dying out towards the target   |            | kernel     |
| T       | compression: linear near the optimum, logarithmic far from it              |            | compression|
| theta   | everything above that is unknown, whitened: a priori independent N(0, 1)   | (m, p)     | prior      |
| m       | members of the set: draws of theta around its maximum a posteriori         |            | fit        |

Mean and kernel are GPyTorch modules: its exact inference is the oracle of their tests, and any GPyTorch or BoTorch
model can take them.

Losses enter in units of their own spread (`Data.unit`), the cube gives lengths, the reach gives scale: all priors are
pure numbers.
"""
