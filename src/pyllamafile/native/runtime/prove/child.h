// The runtime, started as people start it, and watched.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

struct ended {
    bool started = false;
    bool late = false; // it didn't end by itself
    int code = -1;
    std::string out;
    std::string err;
    double seconds = 0;

    // How it ended and what it said, in one line.
    std::string said() const;
};

struct subprocess_s;

// A process of which all that it prints is read. With the object it is ended, if nobody waited.
class child {
  public:
    // `merged`: what it says on standard error comes to `out` as well. `seconds`: how long it has.
    explicit child(const std::vector<std::string> & words, bool merged = false,
                   double seconds = 60);
    ~child();
    child(const child &) = delete;
    child & operator=(const child &) = delete;

    // Standard input, which ends behind it.
    void write(const std::string & text);

    // Waits until it prints a line in which this is; returns the line, or nothing if it doesn't.
    std::string line_with(const std::string & text);

    // What Ctrl-C does. False where one program can't do that to another.
    bool interrupt();

    // Waits for its end.
    ended end();

  private:
    void read(FILE * from, std::string & into);

    std::unique_ptr<subprocess_s> process;
    ended result;
    std::vector<std::thread> readers;
    std::mutex mutex;
    std::condition_variable changed;
    int reading = 0;
    double began, patience;
};

// Starts one, gives it this on standard input, and waits for its end.
ended run_child(const std::vector<std::string> & words, const std::string & input = "",
                bool merged = false, double seconds = 60);

// The same at a terminal: once `prompt` was printed, `typed` is. Not on Windows.
ended run_at_terminal(const std::vector<std::string> & words, const std::string & prompt,
                      const std::string & typed);

// Sets a variable for the processes that are started while it is there.
class variable {
  public:
    variable(const char * name, const std::string & value);
    ~variable();
    variable(const variable &) = delete;
    variable & operator=(const variable &) = delete;

  private:
    const char * name;
    std::string before;
};
