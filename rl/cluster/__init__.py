"""Ray: the cluster of a run, its rollout workers and learner ranks as actors, sandboxes of other nodes, jobs."""
