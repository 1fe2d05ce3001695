// Where each system has Vulkan's drivers: LoaderDriverInterface.md of Vulkan-Loader says it. Each
// has a file of its own, and drivers.cpp asks them.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

// Between the paths in a variable.
extern const char SEPARATOR;

// The paths in a variable, or in a text where it is not set.
std::vector<std::filesystem::path> paths_in(const char * variable, const std::string & otherwise);

// Where the loader looks for manifests that no variable names: files, and folders of them.
std::vector<std::filesystem::path> usual_manifests();

// Where it looks for libraries that have a name and no folder.
std::vector<std::filesystem::path> library_folders();

// The folders of the manifests that there are, and of the libraries that these name.
std::vector<std::filesystem::path> driver_folders();

// Lines on the system that drivers are for, and on the devices that it has.
std::string system_of_drivers();
