// What trials of GPUs have found: as lines that the process of a trial prints, and as a file that
// is kept until something changes that they depend on.
#pragma once

#include <string>
#include <vector>

struct gpu_finding {
    int number;          // of the device, as its driver counts (backend.h)
    std::string name;    // what its driver calls it
    std::string wrong;   // what is wrong with it, in a few words; empty if nothing is
    double slowness = 0; // how often the processor does the same work meanwhile; 0 if unknown
    bool tried = false;
};

struct gpu_findings {
    std::vector<gpu_finding> devices;
    std::string problem; // what is in the way of all of them, in a few words
    int trying = -1;     // the device that was tried last and has no finding

    gpu_finding * of(int number);
};

// The lines. What else stands between them a driver has printed.
std::string line_of_device(int number, const std::string & name);
std::string line_of_trying(int number);
std::string line_of_right(int number, double slowness);
std::string line_of_wrong(int number, const std::string & why);
std::string line_of_problem(const std::string & why);

// Adds what they say to what was found before.
void read_findings(const std::string & lines, gpu_findings & found);

// Where what was found is kept: of these drivers with this work (texts), by this program, and by
// the variables that drivers and ggml read. Empty where there is no place.
std::string place_of_findings(const std::string & program, const std::string & drivers,
                              const std::string & work);

// Where it is kept that a program for GPUs, by its SHA-256, does not run on this system.
std::string place_of_refusal(const std::string & program, const std::string & sha256);

// What was kept there: false if there is nothing, or if a device was refused a day ago, for what
// was in its way may be gone.
bool recall_findings(const std::string & place, gpu_findings & found);
void keep_findings(const std::string & place, const gpu_findings & found);

// What was found last of these drivers, with whatever work; no devices and no problem if nothing.
gpu_findings last_findings(const std::string & program, const std::string & drivers);
