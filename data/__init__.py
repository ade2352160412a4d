"""What is asked: tasks, where they come from, and how a prompt puts them to a model."""
