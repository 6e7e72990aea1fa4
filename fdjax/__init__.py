"""Score a faculty of pretrained classifiers for your task, and teach your student from it."""
