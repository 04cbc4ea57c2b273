"""What every room stands on: errors, names with arguments, files and folders, devices."""
