// Declarations of variables, registers and parameters.
#pragma once

#include <memory>
#include <vector>

#include "ptx_parser.h"

namespace hostsim::ptx {

// The state space that a directive (".shared") names. False if it names none.
bool parse_space(std::string_view directive, Variable::Space& space);

// What follows the state space, up to and including ";".
std::vector<std::unique_ptr<Variable>> parse_variables(Cursor& at, Variable::Space space,
                                                       bool is_extern);

// What follows "(": parameters or results of a function, up to and including ")".
std::vector<std::unique_ptr<Variable>> parse_parameters(Cursor& at);

// What follows ".reg", up to and including ";".
void parse_registers(Cursor& at, Scope& scope);

// What follows "{": the body of a function, up to and including "}".
void parse_body(Cursor& at, Function& function);

}  // namespace hostsim::ptx
