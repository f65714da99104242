"""Models: where they come from (`locate`), their cards (`card`), and the bundled pair."""
