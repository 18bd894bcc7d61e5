"""What is expected of workflows, whether it holds, and notices where it does not."""
