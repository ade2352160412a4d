"""Where a model acts and is graded: one trajectory, its sandbox, tools, policy and grader."""
