"""What image files say about themselves: the meaning of their samples, their structure, their µm/px."""
