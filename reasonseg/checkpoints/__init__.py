"""Models on disk: our folders, folders of changes, and the released formats of other projects."""
