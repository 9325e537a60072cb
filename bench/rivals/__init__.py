"""What the package is compared with: ops, models and samplers as they are written without it."""
