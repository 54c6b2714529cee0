"""The commands, a file each group. Heavy libraries load only in the function that needs them."""
