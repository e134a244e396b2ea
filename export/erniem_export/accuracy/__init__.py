"""What an artifact's precision costs its task: a labelled set, the pipelines' answers, the task's own metric."""
