"""The tuner inside other people's tools: each adapter calls the same `propose` and `recommend` on their own record."""
