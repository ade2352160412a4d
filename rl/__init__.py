"""How a policy learns and is measured: the algorithm, its learner, engines and cluster, and what a run leaves."""
