// Included before upstream's preset.cpp, whose router takes its models from a folder: of a
// llamafile, each model in it is one.
#pragma once

#include "preset.h"

#include <optional>
#include <string>

// The models of a llamafile; nothing where the path is a folder, or no llamafile. In router.cpp.
std::optional<common_presets> presets_of_llamafile(const common_preset_context & context,
                                                   const std::string & path);
