"""Where labelled and unlabelled tissue comes from: image folders, slides with polygons, the flowers convention."""
