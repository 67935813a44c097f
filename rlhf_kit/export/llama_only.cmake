# Read by CMake where llama.cpp's own project begins, and after llama-cpp-python has asked for its command line's
# library, which nothing here uses: half of the compiling. Without it what is left is ggml and libllama.
set(LLAMA_BUILD_COMMON OFF CACHE BOOL "Build llama.cpp common library" FORCE)
