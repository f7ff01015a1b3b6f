"""What clients do: connections, channels, publishing, consuming, acknowledging."""
