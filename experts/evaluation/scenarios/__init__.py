"""What methods of continual learning are measured on, one way of making tasks a file."""
